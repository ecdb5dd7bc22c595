"""Docker's endpoints, one module for each group; each exports ROUTES."""
