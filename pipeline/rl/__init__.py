"""What any online method needs: policy, roll-outs, rewards, maths, health."""
