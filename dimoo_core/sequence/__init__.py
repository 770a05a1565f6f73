"""Words, codes and holes to ids."""
