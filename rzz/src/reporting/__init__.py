"""What a person reads: sections, figures and pages of the report, the card of a prediction."""
