"""What is injected: options, and the modules and mixins that carry a method."""
