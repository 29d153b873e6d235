//! The node agent as a library, so that the simulator and the tests use the same code.
