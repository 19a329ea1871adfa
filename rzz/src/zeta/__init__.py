"""The mathematics of the zeros: numpy and mpmath alone."""
