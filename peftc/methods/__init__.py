"""The methods: a room each, with all that belongs to it."""
