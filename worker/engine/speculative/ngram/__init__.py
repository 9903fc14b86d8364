"""Contains drafters that use n-grams of the text so far."""
