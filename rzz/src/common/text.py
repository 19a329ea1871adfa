"""Numbers, durations and tables as a person reads them.

    format_duration(3723)                   # '1 h 2 min'
    format_number(0.0035651)                # '0.003565'
"""




def format_duration(seconds):
    """'45 s', '12 min 3 s' or '5 h 20 min'."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def format_number(value):
    """A measure with four digits, '–' where there is none."""
    return "–" if value is None else f"{value:.4g}"
