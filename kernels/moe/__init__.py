"""Mixture-of-experts layers: routing tokens, sorting them by expert, and the experts themselves."""
