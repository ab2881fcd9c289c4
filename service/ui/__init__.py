"""The people's pages under `/ui`: static files, sessions, and the door to the API for who is logged in."""
