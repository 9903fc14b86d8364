"""The attacks: hostile requests and files for a real gateway, and what they may cost other clients."""
