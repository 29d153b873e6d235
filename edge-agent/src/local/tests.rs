//! The door as a client finds it.
