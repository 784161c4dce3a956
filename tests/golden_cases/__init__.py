"""One module per method or small family: functions that check its golden vectors through the production code."""
