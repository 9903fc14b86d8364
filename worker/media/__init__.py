"""Images, audio and video that a request brings or names: from the words of the request to the bytes of the files."""
