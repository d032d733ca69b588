"""The node `trd` of the configuration: dataclasses, the rules of their values, and what follows from them."""
