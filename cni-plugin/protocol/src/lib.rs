//! CNI specification types and the messages between plugin and agent.
