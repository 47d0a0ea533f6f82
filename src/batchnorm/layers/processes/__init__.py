"""The processes that share a layer's statistics: who they are, and the one sum forward and backward."""
