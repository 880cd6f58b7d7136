"""Speed and strength side by side with other libraries: `make bench`. Not part of the package."""
