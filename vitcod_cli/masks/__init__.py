"""Step 3's maths: a fixed mask from an attention map. numpy only."""
