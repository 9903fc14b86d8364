"""How much memory a model needs, and how much there is: estimates, budgets, devices, host memory."""
