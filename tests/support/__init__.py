"""What tests share and no tool needs: stand-ins, and answers written out to compare with."""
