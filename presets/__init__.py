"""The vocabulary that router and worker share: options, preset files, model sources, errors and HTTP manners.

Everything a person can configure is spelled here and nowhere else. Imports nothing of router or worker.
"""
