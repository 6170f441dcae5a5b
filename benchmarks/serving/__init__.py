"""What serving costs: engines by themselves, and the platform around them."""
