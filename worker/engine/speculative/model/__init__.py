"""Contains drafters that use a second model or an MTP head."""
