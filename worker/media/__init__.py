"""Loads the images, audio and video files that a request contains or names."""
