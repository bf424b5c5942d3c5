"""What every part of the package leans on."""
