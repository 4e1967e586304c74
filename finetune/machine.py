"""What this machine can do: its device, memory and pace, measured by a process of its own, because the service loads no
torch."""
