"""Code that operators, sensors, triggers and notifiers share."""
