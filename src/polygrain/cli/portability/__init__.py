"""The same bits on every x86-64 processor with AVX2: shown natively and under an emulator that shows others."""
