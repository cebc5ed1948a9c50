"""A trained model behind HTTP, in the shape of OpenAI's API: chat, pictures, metrics and a page.

One thread owns the model (`engine`); the event loop reads requests, hands them to that thread and
writes what comes back. `guard` stands before every route.
"""
