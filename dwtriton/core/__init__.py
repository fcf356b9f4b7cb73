"""What every room speaks of: points, packed targets, transfers, errors, files, ranks; needs torch and numpy alone."""
