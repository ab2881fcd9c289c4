"""What an operator sees: metrics and logs, neither of which ever holds a prompt's or a reply's text."""
