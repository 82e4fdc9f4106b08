"""Fine-tunes: how models that were trained from one base become one, leaf by leaf."""
