"""The exercises and questions of the lessons, one file a lesson."""
