"""The training corpus of the demo models: conversations and stories from small grammars, written for this project.

`train_demo.py` calls `conversations.py`; the other modules contain its facts and phrases. Everything is drawn from a
`random.Random`, so the same seed gives the same corpus.
"""
