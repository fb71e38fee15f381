"""The one definition of features: from raw columns and plays to the arrays that the networks take."""
