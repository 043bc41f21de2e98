"""Development tools, which are not shipped: reading of machine code, and a machine that runs PTX on the CPU."""
