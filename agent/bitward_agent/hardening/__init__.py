"""Making a model hardier before it is deployed, and measuring what that is worth: the exponent guard, self-correction, fault campaigns."""
