"""Parts of the verifier of mathematical answers: extraction, normalization, readings and equivalence."""
