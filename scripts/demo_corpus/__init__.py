"""The demo models' whole education: conversations and stories made by small grammars, written for this project.

`train_demo.py` calls `conversations.py`; the others are its facts and phrases. Everything is drawn from a
`random.Random`, so one seed gives one corpus.
"""
