"""What a person reads: the figures, sections and page of the report, the card of a prediction."""
