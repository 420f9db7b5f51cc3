"""Roles of parameters, and the tables over them: init and learning-rate factors."""
