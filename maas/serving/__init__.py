"""Ray Serve deployments, the controller that reconciles them, and autoscaling."""
