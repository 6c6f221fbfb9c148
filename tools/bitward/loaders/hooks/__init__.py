"""What is put under each library: one module for each, which knows its interface. Sources are the libraries' own documentation."""
