"""Arrays in, arrays out: Schur forms, Lyapunov factors, Cauchy-like Gramians, their products, responses and norms."""
