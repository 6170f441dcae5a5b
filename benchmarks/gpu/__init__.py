"""What one GPU gives: its measured limits, and how near serving comes to them."""
