"""Many small runs of one recipe on this machine, and what they show: coordinates over widths, rates that transfer."""
