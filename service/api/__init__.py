"""The endpoints: thin handlers between HTTP and what does the work."""
