"""Mini LRVS-F: a small LAION-RVS-Fashion that is drawn, not downloaded.

A product is one garment: alone on white (SIMPLE), and worn by a figure among other garments in a cluttered place
(COMPLEX, or PARTIAL_COMPLEX where the frame cuts it). A scene shows several garments, so without the condition the
query is ambiguous, and with it it is not.

    attributes   what a garment is: category, silhouette, colours, pattern, emblem, caption
    canvas       filling polygons with a textile, shading, outlines
    silhouettes  the outline of each kind of garment on the figure
    scenes       the figure, the place, the two kinds of picture
    build        splits without look-alikes, near-misses, shards and test sets
    draw_mini, train_clip, contact_sheet    the steps mini, mini_clip (a CLIP that saw nothing else), mini_sheet
"""
