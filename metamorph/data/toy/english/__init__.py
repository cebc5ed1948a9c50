"""The tasks of the toy world in ordinary English, in many wordings of which some are held out."""
