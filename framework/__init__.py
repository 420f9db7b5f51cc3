"""What is trained, and how: recipes, models, data, training, and the command line over them."""
