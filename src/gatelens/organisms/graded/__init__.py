"""Graded organisms: fine-tunes of a shipped organism in which known positions carry known facts.

``kinds`` says what each is meant to be, ``train`` makes it with the cuts of ``cuts``, ``truth`` measures what it is.
"""
